"""A circuit per endpoint: after an outage one call looks whether it is over, before the herd comes back."""
