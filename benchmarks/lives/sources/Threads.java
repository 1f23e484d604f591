// SPDX-License-Identifier: GPL-2.0-or-later
import java.util.concurrent.CountDownLatch;

/** Starts so many threads that each wait a little way down their stacks. */
class Threads {
    static int down(int depth, CountDownLatch ready) throws InterruptedException {
        if (depth > 0) {
            return down(depth - 1, ready) + 1;
        }
        ready.countDown();
        Thread.sleep(Long.MAX_VALUE);
        return 0;
    }

    public static void main(String[] words) throws Exception {
        int count = Integer.parseInt(words[0]);
        CountDownLatch ready = new CountDownLatch(count);
        for (int i = 0; i < count; i++) {
            Thread thread = new Thread(() -> {
                try {
                    down(40, ready);
                } catch (InterruptedException error) {
                    throw new RuntimeException(error);
                }
            });
            thread.setDaemon(true);
            thread.start();
        }
        ready.await();
        Heap.mark(count + " threads wait");
    }
}
