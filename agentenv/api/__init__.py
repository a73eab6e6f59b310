"""The trajectory server between environments and trainers, and clients for it. Nothing is imported here."""
