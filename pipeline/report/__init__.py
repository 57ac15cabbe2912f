"""Looking at artifacts and answers, by SQL over views or in a summary."""
