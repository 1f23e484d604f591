// SPDX-License-Identifier: GPL-2.0-or-later
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Random;

/** Fills a heap with maps and arrays, drops most of it, and fills it in part again. */
class Heap {
    static void mark(String name) throws Exception {
        System.out.print("mark " + name + "\n");
        System.out.flush();
        while (System.in.read() != '\n') {
        }
    }

    public static void main(String[] words) throws Exception {
        Random random = new Random(1);
        HashMap<Integer, byte[]> map = new HashMap<>();
        for (int i = 0; i < 40000; i++) {
            map.put(i, new byte[100 + random.nextInt(1000)]);
        }
        mark("filled");
        map.keySet().removeIf(each -> each / 100 % 4 != 0);
        System.gc();
        mark("three quarters dropped");
        ArrayList<byte[]> arrays = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            arrays.add(new byte[100000 + random.nextInt(100000)]);
        }
        mark("arrays");
    }
}
