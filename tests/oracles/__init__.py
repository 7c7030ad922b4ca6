"""Models beside transformers' own: these need torch and transformers, and are not collected without them."""
