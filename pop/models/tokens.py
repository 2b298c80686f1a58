"""How many tokens a text has: counted where the tokenizer is at hand, else estimated and corrected by use."""
