// Text banks (ovsdino/edge/bank.py writes them) and sidecars (ovsdino/edge/sidecar.py): read strictly, checked before
// anything is deserialized. Every function throws std::runtime_error with one line that names the file.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace ovsdino::edge {

struct TextBank {
  std::vector<std::string> names;  // K
  std::vector<float> text;         // (K, columns), rows of length one
  int64_t columns = 0;
  std::string model, weights;
};

struct Sidecar {
  std::string file, sha256, model, backend, version, target, weights;
  int64_t bytes = 0, embed_dim = 0;
  std::array<int64_t, 4> input{};    // batch, 3, height, width
  std::array<int64_t, 2> classes{};  // least, most
  std::array<double, 3> mean{}, std{};
};

TextBank read_bank(const std::string& path);

// The sidecar `<model_path>.json`.
Sidecar read_sidecar(const std::string& model_path);

// Refuses a bank of other weights, or with a K or columns that the graph does not take.
void check_bank(const Sidecar& sidecar, const TextBank& bank);

// The file's content, if its size and SHA-256 are those of the sidecar.
std::vector<uint8_t> read_checked(const std::string& model_path, const Sidecar& sidecar);

}  // namespace ovsdino::edge
