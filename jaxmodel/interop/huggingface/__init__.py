"""Directories as Hugging Face transformers writes and reads them."""
