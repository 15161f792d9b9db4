"""05: one network on every engine, timed honestly and dishonestly."""
