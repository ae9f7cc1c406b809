"""Operations on boxes: plain float32 tensors, xyxy."""
