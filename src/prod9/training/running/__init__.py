"""How a run stops, saves, resumes and ends."""
