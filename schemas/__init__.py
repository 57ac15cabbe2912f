"""The contracts of the artifact: Arrow schemas, job and commit records, DuckDB views. Imports nothing local."""
