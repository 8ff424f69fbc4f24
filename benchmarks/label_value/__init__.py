"""What labels that no person drew are worth on CamVid-11: auto-labels beside an eighth of it, and PSSL pre-training."""
