"""What data is, how it is recorded, read and written."""
