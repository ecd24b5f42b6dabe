"""Raw data to the Parquet file that a run trains on: verified, free of duplicates and of evaluation problems."""
