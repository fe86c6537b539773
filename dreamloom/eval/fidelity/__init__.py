"""How like real transitions others are: metrics of arrays, the reference rows beside them, and the real simulator."""
