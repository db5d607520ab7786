"""What the embedded models were trained on, and with."""
