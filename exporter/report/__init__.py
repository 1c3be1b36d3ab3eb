"""What a run found: as dataclasses, as JSON, and on the terminal."""
