"""The built-in backends, one file per upstream API; each is written with what any third party may import."""
