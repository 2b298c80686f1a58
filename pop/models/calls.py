"""The day's ledger of model calls: one line per request that was answered, billed, or lost."""
