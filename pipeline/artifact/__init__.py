"""The output folder and what lies in it: records, index, tables, tars, payloads, and who may write."""
