"""Makes tiny models of every family and asks the reference implementations what they generate."""
