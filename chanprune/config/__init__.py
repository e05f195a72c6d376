"""The configuration: composed by Hydra, checked, swept. Hydra stops here."""
