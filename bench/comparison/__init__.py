"""What `bench/compare` is made of. Standard library only; what needs numpy or torch runs in an environment of its own."""
