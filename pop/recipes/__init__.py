"""What belongs to a template that `pop init` lays out, and has to be installed code; never an engine of its own."""
