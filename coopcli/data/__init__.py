"""DATA, whatever it is, as labelled images; few-shot lists."""
