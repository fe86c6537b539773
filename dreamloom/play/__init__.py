"""The web player: one server, one session type, one static page."""
