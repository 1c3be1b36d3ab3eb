"""Which layer gets which rank."""
