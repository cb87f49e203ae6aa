"""The engine: nothing here is public; what is stands in ``quadgrad`` itself."""
