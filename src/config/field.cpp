#include "config/field.h"

#include "base/text.h"
#include "config/describe.h"

namespace switchyard {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

}  // namespace

std::string Field::group() const {
  const std::size_t dot = key.rfind('.');
  return dot == std::string::npos ? "" : key.substr(0, dot);
}

std::string Field::leaf() const { return key.substr(key.rfind('.') + 1); }

bool Field::is_bool() const { return std::holds_alternative<bool*>(value); }

std::string Field::type() const {
  return std::visit(Overloaded{[](const bool*) { return "true or false"; }, [](const int*) { return "integer"; },
                               [](const std::int64_t*) { return "integer"; }, [](const double*) { return "number"; },
                               [](const std::string*) { return "string"; },
                               [](const std::vector<std::string>*) { return "list of strings"; }},
                    value);
}

std::string Field::text() const {
  return std::visit(Overloaded{[](const bool* v) { return std::string(*v ? "true" : "false"); },
                               [](const int* v) { return std::to_string(*v); },
                               [](const std::int64_t* v) { return std::to_string(*v); },
                               [](const double* v) { return number_text(*v); }, [](const std::string* v) { return *v; },
                               [](const std::vector<std::string>* v) { return join(*v, ","); }},
                    value);
}

std::vector<Field> fields_of(Config& config) {
  FieldCollector collector;
  describe(collector, config);
  return std::move(collector.fields_);
}

std::vector<Field> fields_of(const Config& config) { return fields_of(const_cast<Config&>(config)); }

namespace {

// Fields that point into a Config of defaults which lives as long as the program.
const FieldCollector& defaults() {
  static Config config;
  static const FieldCollector collector = [] {
    FieldCollector c;
    describe(c, config);
    return c;
  }();
  return collector;
}

}  // namespace

const std::vector<Field>& default_fields() { return defaults().fields_; }
const std::vector<Group>& config_groups() { return defaults().groups_; }

const Field* find_field(const std::string& key) {
  for (const Field& field : default_fields()) {
    if (field.key == key) return &field;
  }
  return nullptr;
}

}  // namespace switchyard
