"""What several commands share: flags, the prepared log, several processes, scoring, the played platform."""
