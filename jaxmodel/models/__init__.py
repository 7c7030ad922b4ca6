"""Model families: a config describes one, `config.build()` makes it, and presets are named configs."""
