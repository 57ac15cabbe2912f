"""What users bring: inputs found, scanned sample by sample, images fetched and decoded. Knows no Ray and no index."""
