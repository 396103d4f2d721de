// Writes databases by random transactions with bbolt itself, and what bbolt reads in them, for tests/bolt.rs.
//
//	write make FILE.db PAGE_BYTES KEYS LARGEST_VALUE TRANSACTIONS SEED [nofreelist]
//	write compact FILE.db FROM.db
//	write dump FILE.db
//
// Each writes FILE.dump too. A second run writes the same dump, and a database with its pages in another order. Those in
// tests/fuzz/corpus/bolt are of these, with bbolt 1.3.6 and Go 1.19 of Debian 12:
//
//	write make pages-of-1024.db 1024 30 3000 6 1
//	write make pages-of-2048.db 2048 30 5000 6 2 nofreelist
//	write compact containerd.db meta.db     a meta.db of containerd 1.6.20 with an image, a lease and three snapshots
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func dump(bucket *bolt.Bucket, depth int, out *bufio.Writer) {
	must(bucket.ForEach(func(key, value []byte) error {
		fmt.Fprintf(out, "%s%x ", strings.Repeat(" ", depth), key)
		if value == nil {
			nested := bucket.Bucket(key)
			fmt.Fprintf(out, "{%d\n", nested.Sequence())
			dump(nested, depth+1, out)
		} else if len(value) > 32 {
			hash := sha256.Sum256(value)
			fmt.Fprintf(out, "= %d:%x\n", len(value), hash[:8])
		} else {
			fmt.Fprintf(out, "= %x\n", value)
		}
		return nil
	}))
}

func noise(random *rand.Rand, length int) []byte {
	bytes := make([]byte, length)
	random.Read(bytes)
	return bytes
}

// Puts and deletes keys and buckets, as one transaction does.
func work(random *rand.Rand, bucket *bolt.Bucket, keys, largest, depth int) {
	for i := 0; i < keys; i++ {
		key := []byte(fmt.Sprintf("%0*d-%s", 1+random.Intn(6), random.Intn(keys*4), "key-of-some-length"[:random.Intn(18)]))
		switch random.Intn(12) {
		case 0, 1, 2:
			found, value := bucket.Cursor().Seek(key)
			if found != nil && value != nil {
				must(bucket.Delete(found))
			} else if found != nil && random.Intn(3) == 0 {
				must(bucket.DeleteBucket(found))
			}
		case 3:
			if depth == 0 {
				continue
			}
			nested, err := bucket.CreateBucketIfNotExists(append([]byte("b"), key[:1+random.Intn(2)%len(key)]...))
			if err != nil {
				continue
			}
			for j := random.Intn(3); j > 0; j-- {
				nested.NextSequence()
			}
			count := keys / 4
			if random.Intn(2) == 0 {
				count = 2
			}
			work(random, nested, count, largest, depth-1)
		case 4:
			if largest > 0 && random.Intn(20) == 0 {
				bucket.Put(key, noise(random, random.Intn(largest)))
			}
		case 5:
			bucket.Put(key, []byte{})
		default:
			bucket.Put(key, noise(random, random.Intn(40)))
		}
	}
}

func write(path string, page, keys, largest, transactions int, seed int64, noFreelist bool) {
	random := rand.New(rand.NewSource(seed))
	db, err := bolt.Open(path, 0600, &bolt.Options{PageSize: page, NoFreelistSync: noFreelist})
	must(err)
	db.AllocSize = page
	db.NoSync = true
	for i := 0; i < transactions; i++ {
		must(db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{"v1", "other", "deep"}[:1+random.Intn(3)] {
				bucket, err := tx.CreateBucketIfNotExists([]byte(name))
				must(err)
				work(random, bucket, keys, largest, 4)
			}
			if random.Intn(10) == 0 {
				tx.DeleteBucket([]byte("other"))
			}
			return nil
		}))
	}
	must(db.Close())
}

func compact(path, from string) {
	source, err := bolt.Open(from, 0600, &bolt.Options{ReadOnly: true})
	must(err)
	db, err := bolt.Open(path, 0600, &bolt.Options{NoFreelistSync: true})
	must(err)
	db.AllocSize = 4096
	must(bolt.Compact(db, source, 0))
	must(db.Close())
}

func main() {
	path := os.Args[2]
	number := func(argument int) int {
		value, err := strconv.Atoi(os.Args[argument])
		must(err)
		return value
	}
	switch os.Args[1] {
	case "make":
		write(path, number(3), number(4), number(5), number(6), int64(number(7)), len(os.Args) > 8)
	case "compact":
		compact(path, os.Args[3])
	}
	db, err := bolt.Open(path, 0600, &bolt.Options{ReadOnly: true})
	must(err)
	file, err := os.Create(strings.TrimSuffix(path, ".db") + ".dump")
	must(err)
	out := bufio.NewWriter(file)
	must(db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			fmt.Fprintf(out, "%x {%d\n", name, bucket.Sequence())
			dump(bucket, 1, out)
			return nil
		})
	}))
	must(out.Flush())
	must(file.Close())
	must(db.Close())
}
