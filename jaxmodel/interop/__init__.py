"""Other people's formats: each module writes one, reads it back, and has its real consumer run it."""
