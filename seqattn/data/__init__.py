"""Event tables, sequences, batches and the catalogue of known data sets."""
