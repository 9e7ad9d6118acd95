"""What recalling women by the predictions is worth."""
