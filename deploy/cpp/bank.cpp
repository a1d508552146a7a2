#include "bank.h"

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
constexpr int64_t kMaxClasses = 32767;
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

// The bank in the bytes of a .safetensors file: the header's length (8 bytes), the header, one tensor.
TextBank parse_bank(const std::vector<uint8_t>& data) {
  if (data.size() < 8) fail("too short for a header");
  const uint64_t length = little_endian(data.data());
  if (length > kMaxHeader || length > data.size() - 8) fail("its header is longer than the file");
  const Json header = parse_json({reinterpret_cast<const char*>(data.data()) + 8, static_cast<size_t>(length)});
  if (header.object.size() != 2 || !header.has("text")) fail("expected the tensor \"text\" and metadata, nothing else");
  const Json &tensor = header.at("text"), &metadata = header.at("__metadata__");
  if (metadata.at("format").text() != "1") fail("format \"" + metadata.at("format").text() + "\", expected \"1\"");
  if (tensor.at("dtype").text() != "F32") fail("dtype " + tensor.at("dtype").text() + ", expected F32");
  const std::vector<Json>&shape = tensor.at("shape").items(), &offsets = tensor.at("data_offsets").items();
  if (shape.size() != 2 || offsets.size() != 2) fail("expected a shape (K, D) and two offsets");
  const int64_t rows = shape[0].integer(), columns = shape[1].integer();
  if (rows < 1 || rows > kMaxClasses || columns < 1 || columns > (int64_t{1} << 20)) {
    fail("shape (" + std::to_string(rows) + ", " + std::to_string(columns) + ")");
  }
  const uint64_t size = 4 * static_cast<uint64_t>(rows) * static_cast<uint64_t>(columns);
  if (offsets[0].integer() != 0 || offsets[1].integer() != static_cast<int64_t>(size) ||
      data.size() - 8 - length != size) {
    fail("its data are not " + std::to_string(size) + " bytes");
  }
  TextBank bank;
  bank.columns = columns;
  bank.model = metadata.at("model").text();
  bank.weights = metadata.at("weights").text();
  const Json names = parse_json(metadata.at("names").text());
  for (const Json& name : names.items()) bank.names.push_back(name.text());
  if (static_cast<int64_t>(bank.names.size()) != rows) {
    fail(std::to_string(bank.names.size()) + " names for " + std::to_string(rows) + " rows");
  }
  const uint8_t* values = data.data() + 8 + length;
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0.0;
    for (int64_t column = 0; column < columns; ++column, values += 4) {
      bank.text.push_back(little_endian_float(values));
      squares += double{bank.text.back()} * bank.text.back();
    }
    if (!(std::fabs(std::sqrt(squares) - 1.0) < 1e-3)) fail("row " + std::to_string(row) + " is not of length 1");
  }
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
  if (json.has("words")) {  // a graph that takes groups of rows, as ovsdino/edge/sidecar.py writes it
    fail("its graph takes several words a class and contrast rows, which this program does not (--no-contrast)");
  }
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

void check_bank(const Sidecar& sidecar, const TextBank& bank) {
  const auto classes = static_cast<int64_t>(bank.names.size());
  if (bank.columns != sidecar.embed_dim) {
    fail("text bank: " + std::to_string(bank.columns) + " columns, " + sidecar.file + " takes " +
         std::to_string(sidecar.embed_dim) + "; make it with `ovsdino text --model " + sidecar.model + "`");
  }
  if (classes < sidecar.classes[0] || classes > sidecar.classes[1]) {
    fail("text bank: " + std::to_string(classes) + " classes, " + sidecar.file + " takes " +
         std::to_string(sidecar.classes[0]) + ".." + std::to_string(sidecar.classes[1]) +
         "; export it again with --classes");
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
