"""Looking at artifacts and answers: SQL over views, summaries."""
