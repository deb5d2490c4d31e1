"""What is learned from histories: context, decoder, multi-token prediction, identity head."""
