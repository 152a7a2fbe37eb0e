"""The `abm-hf` command: `main` parses, each longer command has a module of its own."""
