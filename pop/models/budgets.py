"""What may be spent: reserved before a call, settled after it."""
