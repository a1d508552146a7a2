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
  std::vector<int64_t> words;      // K: how many rows each class has
  std::vector<float> text;         // (sum of words, columns), rows of length one
  std::vector<float> contrast;     // (C, columns), rows of length one that compete with all classes; may be empty
  int64_t columns = 0;
  std::string model, weights;

  int64_t classes() const { return static_cast<int64_t>(names.size()); }
  int64_t most_words() const;
  int64_t contrast_rows() const { return static_cast<int64_t>(contrast.size()) / columns; }

  // (K, most_words, columns), rows of zeros where a class has fewer words.
  std::vector<float> padded() const;
};

struct Sidecar {
  std::string file, sha256, model, backend, version, target, weights;
  int64_t bytes = 0, embed_dim = 0;
  std::array<int64_t, 4> input{};    // batch, 3, height, width
  std::array<int64_t, 2> classes{};  // least, most
  std::array<double, 3> mean{}, std{};
  bool grouped = false;  // takes `text` (K, W, D) and `contrast` (C, D), and gives K + 1 maps, the contrast's last
  std::array<int64_t, 2> words{1, 1}, contrast{0, 0};  // of a grouped graph: least, most
};

TextBank read_bank(const std::string& path);

// The sidecar `<model_path>.json`.
Sidecar read_sidecar(const std::string& model_path);

// Refuses a bank of other weights, or with a K, columns, words or contrast rows that the graph does not take. With
// `partition` the contrast rows are left out.
void check_bank(const Sidecar& sidecar, const TextBank& bank, bool partition);

// The file's content, if its size and SHA-256 are those of the sidecar.
std::vector<uint8_t> read_checked(const std::string& model_path, const Sidecar& sidecar);

}  // namespace ovsdino::edge
