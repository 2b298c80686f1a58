"""A shared box of links: people add them with tags, search them, and take them out again as a file."""

__version__ = "0.3.0"
