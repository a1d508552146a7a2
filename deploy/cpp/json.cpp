#include "json.h"

#include <cmath>
#include <cstdlib>
#include <stdexcept>

namespace ovsdino::edge {
namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = any(0);
    space();
    if (at_ != text_.size()) fail("more after the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("not JSON (" + std::string(what) + " at byte " + std::to_string(at_) + ")");
  }

  char peek() const {
    if (at_ >= text_.size()) fail("the end is missing");
    return text_[at_];
  }

  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  void expect(char wanted) {
    space();
    if (peek() != wanted) fail("an unexpected character");
    ++at_;
  }

  bool take(char wanted) {
    space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  bool word(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  Json any(int depth) {
    if (depth > kMaxDepth) fail("nested too deep");
    space();
    Json value;
    const char first = peek();
    if (first == '{') {
      object(value, depth);
    } else if (first == '[') {
      array(value, depth);
    } else if (first == '"') {
      value.kind = Json::Kind::kString;
      value.string = string();
    } else if (first == '-' || (first >= '0' && first <= '9')) {
      value.kind = Json::Kind::kNumber;
      value.number = number();
    } else if (word("true") || word("false")) {
      value.kind = Json::Kind::kBool;
      value.boolean = first == 't';
    } else if (!word("null")) {
      fail("an unexpected character");
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind = Json::Kind::kObject;
    expect('{');
    if (take('}')) return;
    do {
      space();
      std::string name = string();
      expect(':');
      if (!value.object.emplace(std::move(name), any(depth + 1)).second) fail("a name given twice");
    } while (take(','));
    expect('}');
  }

  void array(Json& value, int depth) {
    value.kind = Json::Kind::kArray;
    expect('[');
    if (take(']')) return;
    do {
      value.array.push_back(any(depth + 1));
    } while (take(','));
    expect(']');
  }

  void digits() {
    if (peek() < '0' || peek() > '9') fail("a digit is missing");
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
  }

  double number() {
    const size_t start = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    if (at_ < text_.size() && text_[at_] == '.') ++at_, digits();
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const double value = std::strtod(std::string(text_.substr(start, at_ - start)).c_str(), nullptr);
    if (!std::isfinite(value)) fail("a number out of range");
    return value;
  }

  std::string string() {
    if (peek() != '"') fail("a text is missing");
    ++at_;
    std::string value;
    for (;;) {
      const char c = peek();
      ++at_;
      if (c == '"') return value;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character");
      if (c == '\\') {
        escape(value);
      } else {
        value.push_back(c);
        if (static_cast<unsigned char>(c) >= 0x80) tail_of_utf8(static_cast<unsigned char>(c), value);
      }
    }
  }

  // The bytes after the first of a character beyond ASCII; overlong forms and surrogates are not UTF-8.
  void tail_of_utf8(unsigned char lead, std::string& value) {
    const int more = lead >= 0xC2 && lead < 0xE0   ? 1
                     : lead >= 0xE0 && lead < 0xF0 ? 2
                     : lead >= 0xF0 && lead < 0xF5 ? 3
                                                   : 0;
    if (more == 0) fail("not UTF-8");
    for (int i = 0; i < more; ++i, ++at_) {
      const auto byte = static_cast<unsigned char>(peek());
      const int low = i > 0 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
      const int high = i > 0 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
      if (byte < low || byte > high) fail("not UTF-8");
      value.push_back(static_cast<char>(byte));
    }
  }

  void escape(std::string& value) {
    const char c = peek();
    ++at_;
    constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
    if (const size_t index = kNames.find(c); index != std::string_view::npos) {
      value.push_back(kValues[index]);
      return;
    }
    if (c != 'u') fail("an unknown escape");
    uint32_t code = hex();
    if (code >= 0xDC00 && code < 0xE000) fail("half a surrogate pair");
    if (code >= 0xD800 && code < 0xDC00) {
      if (!word("\\u")) fail("half a surrogate pair");
      const uint32_t low = hex();
      if (low < 0xDC00 || low >= 0xE000) fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(code, value);
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("a hexadecimal digit is missing");
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    return code;
  }

  static void append_utf8(uint32_t code, std::string& out) {
    if (code < 0x80) {
      out.push_back(static_cast<char>(code));
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead = more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0;
    out.push_back(static_cast<char>(lead | (code >> (6 * more))));
    for (int i = more - 1; i >= 0; --i) out.push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

bool Json::has(const std::string& name) const { return kind == Kind::kObject && object.count(name) > 0; }

const Json& Json::at(const std::string& name) const {
  if (!has(name)) throw std::runtime_error("field \"" + name + "\" is missing");
  return object.at(name);
}

const std::string& Json::text() const {
  if (kind != Kind::kString) throw std::runtime_error("a field is not text");
  return string;
}

double Json::real() const {
  if (kind != Kind::kNumber) throw std::runtime_error("a field is not a number");
  return number;
}

int64_t Json::integer() const {
  constexpr double kMost = 9007199254740992.0;  // 2^53: beyond it doubles skip integers
  if (std::fabs(real()) > kMost || number != std::floor(number))
    throw std::runtime_error("a field is not a whole number");
  return static_cast<int64_t>(number);
}

const std::vector<Json>& Json::items() const {
  if (kind != Kind::kArray) throw std::runtime_error("a field is not a list");
  return array;
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace ovsdino::edge
