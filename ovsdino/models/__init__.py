"""The method: backbone, text towers, Structure-Aware Encoder, Structure-Modulated Decoder, the zoo of whole models."""
