// The floor of a merge: the work that no program can leave out, done as plainly and as fast as this
// machine allows. No checks, no parsing, no recipe; but the same bytes and the same durability.
//
//     floor PLAN OUT [option=value ...]
//
// PLAN, written by bench/floor/__init__.py, has one item a line: `lam X`; `input PATH`; `output SIZE
// NAME`, followed by what its bytes are: `copy AT BYTES FILE OFFSET` or `merge AT ELEMENTS FILE OFFSET
// ...` (base first, then one aligned checkpoint per lam); `side NAME PATH` for small files.
//
// Each thread takes a window of an output, reads what it is made of, combines piece by piece into a
// buffer and writes that. What is in the page cache is read from there, everything else directly.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "combine.h"
#include "input.h"

namespace {

constexpr int DONTCACHE = 0x80;  // RWF_DONTCACHE, Linux 6.14

// threads, window (KiB written at once): when all inputs are cached, or some are not. piece (KiB): what
// is read from the cache and combined at once. read: auto, buffered, direct, mmap, or none (only write).
// write: direct, buffered, dontcache, or none (only read). huge: buffers on large pages. sync: each file
// as soon as it is whole (early), or all at the end.
struct Options {
    std::map<std::string, std::string> text = {
        {"threads", "4"}, {"cold_threads", "8"}, {"window", "1024"}, {"cold_window", "2048"}, {"piece", "128"},
        {"read", "auto"}, {"write", "direct"}, {"huge", "1"}, {"sync", "early"}};
    int64_t number(const char *name) const { return std::stoll(text.at(name)); }
};

struct Range {
    int file;
    int64_t offset;
};

struct Segment {
    bool merge;
    int64_t at, bytes;
    std::vector<Range> in;
};

struct Output {
    std::string name;
    int64_t size;
    std::vector<Segment> segments;
    int fd = -1, direct = -1;
    std::atomic<int64_t> left{0};
};

struct Window {
    Output *output;
    int64_t start, end;
};

class Floor {
  public:
    Floor(const std::string &plan, const std::string &out, const Options &options)
        : piece_(options.number("piece") << 10), huge_(options.number("huge") != 0),
          early_(options.text.at("sync") == "early"), read_(options.text.at("read")),
          write_(options.text.at("write")), out_(out), staging_(out + ".partial") {
        if (mkdir(staging_.c_str(), 0777) != 0) fail(staging_);
        read_plan(plan);
        bool cold = false;
        for (auto &input : inputs_) cold = cold || !input->cached(0);
        threads_ = options.number(cold ? "cold_threads" : "threads");
        window_ = options.number(cold ? "cold_window" : "window") << 10;
        for (auto &output : outputs_) prepare(*output);
    }

    void run() {
        std::vector<std::thread> crew;
        for (int64_t i = 0; i < threads_; ++i) crew.emplace_back([this] { work(); });
        for (auto &thread : crew) thread.join();
        for (auto &output : outputs_)
            if (!early_) sync(*output);
        sync_directory(staging_);
        if (rename(staging_.c_str(), out_.c_str()) != 0) fail("rename");
        const size_t slash = out_.rfind('/');
        sync_directory(slash == std::string::npos ? "." : out_.substr(0, slash));
    }

  private:
    void read_plan(const std::string &plan) {
        std::ifstream file(plan);
        for (std::string line; std::getline(file, line);) {
            std::istringstream words(line);
            std::string kind, name, path;
            words >> kind;
            if (kind == "lam") {
                words >> path;
                lams_.push_back(std::strtof(path.c_str(), nullptr));
            } else if (kind == "input") {
                std::getline(words >> std::ws, path);
                inputs_.push_back(std::make_unique<Input>(path, read_));
            } else if (kind == "output") {
                outputs_.push_back(std::make_unique<Output>());
                words >> outputs_.back()->size >> outputs_.back()->name;
            } else if (kind == "side") {
                words >> name;
                std::getline(words >> std::ws, path);
                copy_small(name, path);
            } else {
                Segment segment{kind == "merge", 0, 0, {}};
                words >> segment.at >> segment.bytes;
                if (segment.merge) segment.bytes *= 2;
                for (Range range; words >> range.file >> range.offset;) segment.in.push_back(range);
                outputs_.back()->segments.push_back(segment);
            }
        }
        if (outputs_.empty()) fail("no output in " + plan);
        if (!lams_.empty()) combine_ = combine_for(static_cast<int>(lams_.size()));
    }

    void copy_small(const std::string &name, const std::string &path) const {
        std::ifstream in(path, std::ios::binary);
        std::stringstream bytes;
        bytes << in.rdbuf();
        const std::string data = bytes.str();
        const int fd = open((staging_ + "/" + name).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (fd < 0 || write(fd, data.data(), data.size()) != ssize_t(data.size())) fail(name);
        if (fdatasync(fd) != 0) fail(name);
        close(fd);
    }

    void prepare(Output &output) {
        for (int64_t at = 0; at < output.size; at += window_) {
            windows_.push_back({&output, at, std::min(at + window_, output.size)});
            ++output.left;
        }
        if (write_ == "none") return;
        const std::string path = staging_ + "/" + output.name;
        output.fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (output.fd < 0 || fallocate(output.fd, 0, 0, output.size) != 0) fail(path);
        if (write_ == "direct") output.direct = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT);
    }

    void work() {
        const int64_t slot = up(window_) + 2 * PAGE, files = int64_t(lams_.size()) + 1;
        // Cached input needs a piece for each file, uncached input a window.
        uint8_t *out = memory(slot * (1 + files), huge_);
        // A disk may be quicker with zeros: when nothing is read, something must be there to write.
        for (int64_t i = 0; read_ == "none" && i < slot; ++i) out[i] = static_cast<uint8_t>((i * 0x9e3779b97f4a7c15u) >> 56);
        for (size_t i; (i = next_.fetch_add(1)) < windows_.size();) {
            const Window &window = windows_[i];
            for (const Segment &segment : window.output->segments)
                if (read_ != "none" && segment.at < window.end && segment.at + segment.bytes > window.start)
                    fill(window, segment, out, out + slot, slot);
            if (write_ != "none") put(window, out);
            if (--window.output->left == 0 && early_) sync(*window.output);
        }
    }

    void fill(const Window &window, const Segment &segment, uint8_t *out, uint8_t *buffers, int64_t slot) {
        const int64_t first = std::max(window.start, segment.at);
        const int64_t total = std::min(window.end, segment.at + segment.bytes) - first;
        const int files = static_cast<int>(segment.in.size());
        const uint8_t *direct[MAX_TERMS + 1] = {};
        for (int k = 0; k < files; ++k) {
            const int64_t offset = segment.in[k].offset + (first - segment.at);
            Input &input = *inputs_[segment.in[k].file];
            if (!input.cached(offset)) direct[k] = input.get_direct(buffers + k * slot, offset, total);
        }
        for (int64_t done = 0; done < total; done += piece_) {
            const int64_t bytes = std::min(piece_, total - done);
            const uint16_t *in[MAX_TERMS + 1];
            for (int k = 0; k < files; ++k) {
                const int64_t offset = segment.in[k].offset + (first - segment.at) + done;
                // One piece's place is used again and again: it stays in the processor's cache.
                const uint8_t *found = direct[k] ? direct[k] + done
                                                 : inputs_[segment.in[k].file]->get(buffers + k * slot, offset, bytes);
                in[k] = reinterpret_cast<const uint16_t *>(found);
            }
            uint8_t *target = out + (first - window.start) + done;
            if (write_ == "none") continue;
            if (segment.merge) combine_(in, lams_.data(), reinterpret_cast<uint16_t *>(target), bytes / 2);
            else std::memcpy(target, in[0], bytes);
            for (int k = 0; k < files; ++k)
                inputs_[segment.in[k].file]->release(segment.in[k].offset + (first - segment.at) + done, bytes);
        }
    }

    void put(const Window &window, const uint8_t *data) const {
        const int64_t bytes = window.end - window.start;
        const int64_t whole = window.output->direct >= 0 ? down(bytes) : 0;
        for (int64_t done = 0; done < bytes;) {
            const int fd = done < whole ? window.output->direct : window.output->fd;
            iovec part = {const_cast<uint8_t *>(data) + done, size_t((done < whole ? whole : bytes) - done)};
            const ssize_t got = pwritev2(fd, &part, 1, window.start + done, write_ == "dontcache" ? DONTCACHE : 0);
            if (got <= 0) fail("write " + window.output->name);
            done += got;
        }
    }

    static void sync(const Output &output) {
        if (output.fd >= 0 && fdatasync(output.fd) != 0) fail("sync " + output.name);
    }

    static void sync_directory(const std::string &path) {
        const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY);
        if (fd < 0 || fsync(fd) != 0) fail("sync " + path);
        close(fd);
    }

    const int64_t piece_;
    int64_t threads_ = 1, window_ = 0;
    const bool huge_, early_;
    const std::string read_, write_, out_, staging_;
    std::vector<float> lams_;
    std::vector<std::unique_ptr<Input>> inputs_;
    std::vector<std::unique_ptr<Output>> outputs_;
    std::vector<Window> windows_;
    std::atomic<size_t> next_{0};
    Combine combine_ = nullptr;
};

}  // namespace

int main(int argc, char **argv) {
    Options options;
    for (int i = 3; i < argc; ++i) {
        const std::string text = argv[i];
        options.text.at(text.substr(0, text.find('='))) = text.substr(text.find('=') + 1);
    }
    if (argc < 3) return 2;
    Floor(argv[1], argv[2], options).run();
}
