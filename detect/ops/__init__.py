"""Operations on boxes and feature maps: pure functions on tensors."""
