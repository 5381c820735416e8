"""Reading run folders: runs and their scores, rollouts, and who may be compared with whom."""
