// One option as data: its key, where its value lies in a Config, what it may hold, and what it does.
// Fields come from the describe() functions (describe.h); reading, writing, help and the schema all walk this list.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "config/config.h"
#include "config/constraint.h"

namespace switchyard {

using FieldValue = std::variant<bool*, int*, std::int64_t*, double*, std::string*, std::vector<std::string>*>;

struct Field {
  std::string key;   // "router.top_k"
  FieldValue value;  // into the Config that fields_of() was given
  Constraint constraint;
  std::string help;       // what it does and what follows from it
  std::string reference;  // the design's number of the feature and the paper it comes from; may be empty

  std::string group() const;  // "router"; "" at the top level
  std::string leaf() const;   // "top_k"
  std::string type() const;   // "true or false", "integer", "number", "string", "list of strings"
  std::string text() const;   // the value as a person writes it on the command line
  bool is_bool() const;
};

struct Group {
  std::string name;  // "optim.muon"
  std::string help;
};

// What describe() talks to: collects the fields of a Config and the groups they stand in.
class FieldCollector {
 public:
  template <class T>
  void field(const char* key, T& value, Constraint constraint, const char* help, const char* reference = "") {
    fields_.push_back({prefix_ + key, &value, std::move(constraint), help, reference});
  }
  template <class G>
  void group(const char* name, G& members, const char* help) {
    const std::string outer = prefix_;
    groups_.push_back({prefix_ + name, help});
    prefix_ += std::string(name) + ".";
    describe(*this, members);
    prefix_ = outer;
  }

  std::vector<Field> fields_;
  std::vector<Group> groups_;

 private:
  std::string prefix_;
};

// In the order of declaration. The Config must outlive the list; fields_of(const) is for reading only.
std::vector<Field> fields_of(Config& config);
std::vector<Field> fields_of(const Config& config);
const std::vector<Field>& default_fields();  // of a Config that holds every default
const std::vector<Group>& config_groups();
// The default's field of this key, or nullptr.
const Field* find_field(const std::string& key);

}  // namespace switchyard
