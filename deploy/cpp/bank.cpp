#include "bank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "files.h"
#include "json.h"

namespace ovsdino::edge {
namespace {

constexpr uint64_t kMaxBank = uint64_t{256} << 20;    // as ovsdino/edge/bank.py
constexpr uint64_t kMaxHeader = uint64_t{32} << 20;   // 32 767 names of 300 characters
constexpr uint64_t kMaxSidecar = uint64_t{16} << 20;  // a few hundred bytes; those of int8 graphs list their layers
constexpr uint64_t kMaxModel = uint64_t{8} << 30;
constexpr size_t kMaxClasses = 32767;
constexpr int64_t kMaxRows = int64_t{1} << 20;
constexpr const char* kRemake = "; make it again with `ovsdino text`";

uint64_t little_endian(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

float little_endian_float(const uint8_t* bytes) {
  const uint32_t word =
      uint32_t{bytes[0]} | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16 | uint32_t{bytes[3]} << 24;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// Where the values of a tensor lie, in bytes after the header.
struct Rows {
  int64_t count = 0, columns = 0;
  uint64_t begin = 0, end = 0;
};

Rows read_rows(const Json& tensor) {
  if (tensor.at("dtype").text() != "F32") fail("dtype " + tensor.at("dtype").text() + ", expected F32");
  const std::vector<Json>&shape = tensor.at("shape").items(), &offsets = tensor.at("data_offsets").items();
  if (shape.size() != 2 || offsets.size() != 2) fail("expected a shape (rows, columns) and two offsets");
  Rows rows;
  rows.count = shape[0].integer(), rows.columns = shape[1].integer();
  if (rows.count < 1 || rows.count > kMaxRows || rows.columns < 1 || rows.columns > (int64_t{1} << 20)) {
    fail("shape (" + std::to_string(rows.count) + ", " + std::to_string(rows.columns) + ")");
  }
  if (offsets[0].integer() < 0 || offsets[1].integer() < offsets[0].integer()) fail("an offset is out of range");
  rows.begin = static_cast<uint64_t>(offsets[0].integer()), rows.end = static_cast<uint64_t>(offsets[1].integer());
  const uint64_t size = 4 * static_cast<uint64_t>(rows.count) * static_cast<uint64_t>(rows.columns);
  if (rows.end - rows.begin != size) fail("its data are not " + std::to_string(size) + " bytes");
  return rows;
}

std::vector<float> values_of(const Rows& rows, const uint8_t* data, const char* what) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(rows.count * rows.columns));
  const uint8_t* at = data + rows.begin;
  for (int64_t row = 0; row < rows.count; ++row) {
    double squares = 0.0;
    for (int64_t column = 0; column < rows.columns; ++column, at += 4) {
      values.push_back(little_endian_float(at));
      squares += double{values.back()} * values.back();
    }
    if (!(std::fabs(std::sqrt(squares) - 1.0) < 1e-3)) {
      fail(std::string(what) + " row " + std::to_string(row) + " is not of length 1");
    }
  }
  return values;
}

// How many rows each class has; an empty list stands for one each.
std::vector<int64_t> read_words(const Json& metadata, bool grouped, size_t classes, int64_t rows) {
  std::vector<int64_t> words;
  int64_t sum = 0;
  if (grouped && metadata.has("words")) {
    const Json list = parse_json(metadata.at("words").text());
    for (const Json& count : list.items()) {
      words.push_back(count.integer());
      if (words.back() < 1 || words.back() > rows) fail("a class has " + std::to_string(words.back()) + " words");
      sum += words.back();
    }
  }
  if (words.empty()) words.assign(classes, 1), sum = static_cast<int64_t>(classes);
  if (words.size() != classes || sum != rows) {
    fail(std::to_string(classes) + " names with " + std::to_string(sum) + " words for " + std::to_string(rows) +
         " rows");
  }
  return words;
}

// The bank in the bytes of a .safetensors file: the header's length (8 bytes), the header, one tensor or two.
TextBank parse_bank(const std::vector<uint8_t>& data) {
  if (data.size() < 8) fail("too short for a header");
  const uint64_t length = little_endian(data.data());
  if (length > kMaxHeader || length > data.size() - 8) fail("its header is longer than the file");
  const Json header = parse_json({reinterpret_cast<const char*>(data.data()) + 8, static_cast<size_t>(length)});
  const Json& metadata = header.at("__metadata__");
  const std::string& format = metadata.at("format").text();
  const bool grouped = format == "2", competes = grouped && header.has("contrast");
  if (format != "1" && !grouped) fail("format \"" + format + "\", expected \"1\" or \"2\"");
  if (!header.has("text") || header.object.size() != (competes ? 3 : 2)) {
    fail("expected the tensor \"text\", in format 2 perhaps \"contrast\", and metadata, nothing else");
  }
  const Rows text = read_rows(header.at("text"));
  const Rows contrast = competes ? read_rows(header.at("contrast")) : Rows{0, text.columns, text.end, text.end};
  const bool first = text.begin == 0 && contrast.begin == text.end;
  const bool second = competes && contrast.begin == 0 && text.begin == contrast.end;
  if (!(first || second) || data.size() - 8 - length != std::max(text.end, contrast.end)) {
    fail("its data are not " + std::to_string(text.end - text.begin + contrast.end - contrast.begin) + " bytes");
  }
  if (contrast.columns != text.columns) fail("contrast has " + std::to_string(contrast.columns) + " columns");
  TextBank bank;
  bank.columns = text.columns;
  bank.model = metadata.at("model").text();
  bank.weights = metadata.at("weights").text();
  const Json names = parse_json(metadata.at("names").text());
  for (const Json& name : names.items()) bank.names.push_back(name.text());
  if (bank.names.size() > kMaxClasses) fail(std::to_string(bank.names.size()) + " names");
  bank.words = read_words(metadata, grouped, bank.names.size(), text.count);
  const uint8_t* values = data.data() + 8 + length;
  bank.text = values_of(text, values, "text");
  if (competes) bank.contrast = values_of(contrast, values, "contrast");
  return bank;
}

template <size_t kCount, typename T>
void numbers(const Json& list, std::array<T, kCount>& out, T (Json::*get)() const) {
  if (list.items().size() != kCount) fail("a list has not " + std::to_string(kCount) + " numbers");
  for (size_t i = 0; i < kCount; ++i) out[i] = (list.items()[i].*get)();
}

Sidecar parse_sidecar(std::string_view text) {
  const Json json = parse_json(text);
  if (json.at("format").integer() != 1)
    fail("format is " + std::to_string(json.at("format").integer()) + ", expected 1");
  Sidecar sidecar;
  sidecar.file = json.at("file").text();
  sidecar.sha256 = json.at("sha256").text();
  sidecar.model = json.at("model").text();
  sidecar.backend = json.at("backend").text();
  sidecar.version = json.at("version").text();
  sidecar.target = json.at("target").text();
  sidecar.weights = json.at("weights").text();
  sidecar.bytes = json.at("bytes").integer();
  sidecar.embed_dim = json.at("embed_dim").integer();
  numbers(json.at("input"), sidecar.input, &Json::integer);
  numbers(json.at("classes"), sidecar.classes, &Json::integer);
  numbers(json.at("mean"), sidecar.mean, &Json::real);
  numbers(json.at("std"), sidecar.std, &Json::real);
  sidecar.grouped = json.has("words") && json.has("contrast");
  if (sidecar.grouped) {
    numbers(json.at("words"), sidecar.words, &Json::integer);
    numbers(json.at("contrast"), sidecar.contrast, &Json::integer);
  }
  for (const int64_t side : sidecar.input) {
    if (side < 1 || side > 65536) fail("a side of the input is " + std::to_string(side));
  }
  if (sidecar.input[1] != 3) fail("the input has " + std::to_string(sidecar.input[1]) + " channels, expected 3");
  for (const double value : sidecar.mean) {  // ranges as ovsdino/edge/fields.py
    if (!(value >= 0.0 && value <= 1.0)) fail("mean is not within 0 to 1");
  }
  for (const double deviation : sidecar.std) {
    if (!(deviation >= 1e-3 && deviation <= 10.0)) fail("std is not within 0.001 to 10");
  }
  return sidecar;
}

}  // namespace

TextBank read_bank(const std::string& path) {
  const std::vector<uint8_t> data = read_file(path, kMaxBank);
  try {
    return parse_bank(data);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": not a text bank: " + error.what() + kRemake);
  }
}

Sidecar read_sidecar(const std::string& model_path) {
  const std::string path = model_path + ".json";
  const std::vector<uint8_t> data = read_file(path, kMaxSidecar);
  try {
    return parse_sidecar({reinterpret_cast<const char*>(data.data()), data.size()});
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": not a sidecar: " + error.what() + "; export the model again");
  }
}

int64_t TextBank::most_words() const { return *std::max_element(words.begin(), words.end()); }

std::vector<float> TextBank::padded() const {
  const int64_t most = most_words();
  std::vector<float> rows(static_cast<size_t>(classes() * most * columns));
  auto from = text.begin();
  for (int64_t k = 0; k < classes(); ++k) {
    const auto to = from + static_cast<std::ptrdiff_t>(words[static_cast<size_t>(k)] * columns);
    std::copy(from, to, rows.begin() + static_cast<std::ptrdiff_t>(k * most * columns));
    from = to;
  }
  return rows;
}

void check_bank(const Sidecar& sidecar, const TextBank& bank, bool partition) {
  const int64_t classes = bank.classes(), words = bank.most_words();
  const int64_t contrast = partition ? 0 : bank.contrast_rows();
  if (bank.columns != sidecar.embed_dim) {
    fail("text bank: " + std::to_string(bank.columns) + " columns, " + sidecar.file + " takes " +
         std::to_string(sidecar.embed_dim) + "; make it with `ovsdino text --model " + sidecar.model + "`");
  }
  if (classes < sidecar.classes[0] || classes > sidecar.classes[1]) {
    fail("text bank: " + std::to_string(classes) + " classes, " + sidecar.file + " takes " +
         std::to_string(sidecar.classes[0]) + ".." + std::to_string(sidecar.classes[1]) +
         "; export it again with --classes");
  }
  if (!sidecar.grouped && (words > 1 || contrast > 0)) {
    fail("text bank: " + std::to_string(words) + " words a class and " + std::to_string(contrast) + " contrast rows, " +
         sidecar.file + " takes one row a class; export it again with --contrast, or make the " +
         "bank with `ovsdino text --partition --average-words`");
  }
  if (sidecar.grouped && (words > sidecar.words[1] || contrast > sidecar.contrast[1])) {
    fail("text bank: " + std::to_string(words) + " words a class and " + std::to_string(contrast) + " contrast rows, " +
         sidecar.file + " takes at most " + std::to_string(sidecar.words[1]) + " and " +
         std::to_string(sidecar.contrast[1]));
  }
  if (bank.weights != sidecar.weights) {
    fail("text bank: made for other weights than " + sidecar.file + "; make it with `ovsdino text --model " +
         sidecar.model + "` and the same checkpoint");
  }
}

std::vector<uint8_t> read_checked(const std::string& model_path, const Sidecar& sidecar) {
  std::vector<uint8_t> data = read_file(model_path, kMaxModel);
  if (static_cast<int64_t>(data.size()) != sidecar.bytes || sha256(data) != sidecar.sha256) {
    fail(model_path + ": changed since it was exported (its size or SHA-256 is not the sidecar's); export it again");
  }
  return data;
}

}  // namespace ovsdino::edge
