/* Bad packets write nothing: each is put between two good ones, of which only the first may show.
 *
 *   badpackets    a CHECK line for each kind
 */
#include "dma.h"

enum { SIZE = 16384, FIRST = 0x600DF00D, SECOND = 0xBADF00D5 };
#define MAX_U64 UINT64_MAX

static struct blob source, target;
static uint32_t S, T;
static uint8_t source_model[SIZE], target_model[SIZE];
static uint32_t slack; /* bytes after the last word */

static void begin(void)
{
	random_bytes(source_model, SIZE);
	random_bytes(target_model, SIZE);
	memcpy(source.map, source_model, SIZE);
	memcpy(target.map, target_model, SIZE);
	slack = 0;
	uses(&source);
	fill(&target, 0, 4, FIRST);
}

/* `bad` as the name says: the packet was put; run it and what follows */
static void end(const char *name, bool follow)
{
	char line[64];

	if (follow)
		fill(&target, 64, 4, SECOND);
	submit(0, 0, slack);
	wait_blob(target.handle);
	wait_blob(source.handle);
	own_fill(target_model, 4, FIRST);
	expect_bytes("the target", target.map, target_model, SIZE);
	expect_bytes("the source", source.map, source_model, SIZE);
	/* and the context goes on */
	copy(&source, &target, 5, 77, 999);
	run();
	memcpy(target_model + 77, source_model + 5, 999);
	expect_bytes("the target of the next stream", target.map, target_model, SIZE);
	snprintf(line, sizeof(line), "bad-%s", name);
	verdict(line);
}

#define BAD(name, ...)               \
	do {                         \
		begin();             \
		__VA_ARGS__;         \
		end(name, true);     \
	} while (0)

#define LAST(name, ...)              \
	do {                         \
		begin();             \
		__VA_ARGS__;         \
		end(name, false);    \
	} while (0)

static void headers(void)
{
	BAD("unknown-opcode", put(5 | 4 << 16), put(T), put(0), put(0));
	BAD("last-opcode", put(0xFFFF | 1 << 16));
	BAD("no-length", put(OP_NOP));
	BAD("fill-without-length", put(OP_FILL), put(T), put64(128), put64(64), put(7), put(0));
	BAD("fill-too-short", put(OP_FILL | 7 << 16), put(T), put64(128), put64(64), put(7));
	BAD("fill-too-long", put(OP_FILL | 9 << 16), put(T), put64(128), put64(64), put(7), put(0),
	    put(0));
	BAD("copy-too-short", put(OP_COPY | 8 << 16), put(S), put(T), put(0), put64(0), put64(0));
	LAST("copy-cut", put(OP_COPY | 10 << 16), put(S), put(T), put(0), put64(0), put64(64));
	LAST("fill-cut-in-a-dword", raw_fill(T, 128, 64, 7), stream_words--, slack = 2);
	LAST("half-a-header", slack = 2);
	BAD("length-leaves-the-stream", put(OP_NOP | 0xFFFF << 16));
}

static void ranges(void)
{
	BAD("fill-past-the-end", raw_fill(T, SIZE - 4, 8, 7));
	BAD("fill-behind-the-end", raw_fill(T, SIZE, 4, 7));
	BAD("fill-wraps", raw_fill(T, MAX_U64 - 3, 8, 7));
	BAD("fill-endless", raw_fill(T, 128, MAX_U64, 7));
	BAD("copy-from-past-the-end", raw_copy(S, T, SIZE - 8, 128, 9));
	BAD("copy-to-past-the-end", raw_copy(S, T, 0, SIZE - 8, 9));
	BAD("copy-from-wraps", raw_copy(S, T, MAX_U64 - 15, 128, 32));
	BAD("copy-to-wraps", raw_copy(S, T, 0, MAX_U64 - 15, 32));
	BAD("copy-endless", raw_copy(S, T, 0, 128, MAX_U64));
	BAD("crc32-from-past-the-end", raw_crc32(S, T, SIZE - 8, 9, 128));
	BAD("crc32-from-wraps", raw_crc32(S, T, MAX_U64, 2, 128));
	BAD("crc32-to-past-the-end", raw_crc32(S, T, 0, 16, SIZE - 3));
	BAD("crc32-to-wraps", raw_crc32(S, T, 0, 16, MAX_U64 - 1));
}

static void blits(void)
{
	const struct {
		const char *name;
		struct blit blit;
	} cases[] = {
		{ "blit-from-past-the-end", { 4, 256, 64, SIZE - 320, 128, 16, 3 } },
		{ "blit-to-past-the-end", { 4, 64, 256, 0, SIZE - 320, 16, 3 } },
		{ "blit-last-row-by-a-byte", { 1, 64, 64, 0, SIZE - 127, 64, 2 } },
		{ "blit-from-wraps", { 4, 64, 64, MAX_U64 - 63, 128, 16, 2 } },
		{ "blit-to-wraps", { 4, 64, 64, 0, MAX_U64 - 63, 16, 2 } },
		{ "blit-huge-strides", { 1, UINT32_MAX, UINT32_MAX, 0, 128, 1, UINT32_MAX } },
		{ "blit-huge-rows", { UINT32_MAX, 64, 64, 0, 128, UINT32_MAX, 2 } },
		{ "blit-target-stride-short", { 4, 64, 60, 0, 128, 16, 4 } },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		BAD(cases[i].name, raw_blit(S, T, &cases[i].blit));
}

static void resources(void)
{
	int own = gpu;
	struct blob foreign;

	BAD("no-resource-0", raw_fill(0, 0, 4, 7));
	BAD("no-such-resource", raw_fill(0x7FFFFFFF, 0, 4, 7));
	BAD("copy-from-no-resource", raw_copy(0x7FFFFFFF, T, 0, 128, 64));
	BAD("copy-to-no-resource", raw_copy(S, 0x7FFFFFFF, 0, 128, 64));
	/* another context's blob */
	open_context(0, 0);
	foreign = host_blob(SIZE);
	memset(foreign.map, 0x77, SIZE);
	gpu = own;
	BAD("fill-foreign", raw_fill(foreign.resource, 0, 64, 7));
	BAD("copy-from-foreign", raw_copy(foreign.resource, T, 0, 128, 64));
	BAD("copy-to-foreign", raw_copy(S, foreign.resource, 0, 128, 64));
	for (uint32_t at = 0; at < SIZE; at++)
		if (!expect(foreign.map[at] == 0x77, "byte %u is %02x", at, foreign.map[at]))
			break;
	verdict("foreign-blob-untouched");
}

/* As many packets as the capset allows run, and not one more. */
static void count(void)
{
	uint32_t most = get_capset().max_packets;

	if (most + 64 > STREAM_WORDS) {
		printf("CHECK max-packets FAIL %u are too many to try\n", most);
		return;
	}
	begin();
	for (uint32_t i = 2; i < most; i++)
		put(OP_NOP | 1 << 16);
	fill(&target, 64, 4, SECOND);
	run();
	own_fill(target_model, 4, FIRST);
	own_fill(target_model + 64, 4, SECOND);
	expect_bytes("with all packets that are allowed", target.map, target_model, SIZE);
	begin();
	for (uint32_t i = 1; i < most; i++)
		put(OP_NOP | 1 << 16);
	fill(&target, 64, 4, SECOND);
	run();
	own_fill(target_model, 4, FIRST);
	expect_bytes("with a packet more", target.map, target_model, SIZE);
	verdict("max-packets");
}

int main(void)
{
	open_context(0, 0);
	source = host_blob(SIZE);
	target = host_blob(SIZE);
	S = source.resource;
	T = target.resource;
	headers();
	ranges();
	blits();
	resources();
	count();
	printf("BADPACKETS done\n");
	return 0;
}
