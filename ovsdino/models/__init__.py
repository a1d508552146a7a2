"""The method: backbone, text towers, Structure-Aware Encoder, Structure-Modulated Decoder, and the zoo of whole models."""
